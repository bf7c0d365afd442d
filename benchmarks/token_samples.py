"""Texts for bench_tokens.py, as people and agents write them to each other; none was used to fit the estimate."""

__all__ = ["SAMPLES"]

ENGLISH = """\
Hi, I ordered a standing desk three weeks ago and it still has not arrived. The tracking page says it left the
warehouse on Monday, but nothing has changed since then. I already called the carrier twice, and both times
they told me that the parcel was waiting for a second box. Could you please find out what is going on? If it
can't be delivered before Friday, I'd rather have my money back, because I'm moving out of this apartment at
the end of the month. By the way, the invoice you sent me shows the old address; my new one is 14 Harbour
Lane, second floor.

Thanks for your patience, Dana. I looked into it: your desk ships in two boxes, and the carrier holds the
first one until both are there. The second box was damaged during loading, so we have sent a replacement from
another warehouse today. It should reach the depot tomorrow, and the delivery is planned for Thursday between
nine and noon. I have corrected your address as well. Would you like me to ask the driver to call you half an
hour before?
"""

GERMAN = """\
Guten Tag, ich habe vor drei Wochen einen höhenverstellbaren Schreibtisch bestellt, der bis heute nicht
angekommen ist. Laut Sendungsverfolgung hat er das Lager am Montag verlassen, seitdem hat sich nichts mehr
geändert. Den Paketdienst habe ich schon zweimal angerufen; beide Male hieß es, die Lieferung warte noch auf
einen zweiten Karton. Könnten Sie bitte herausfinden, woran es liegt? Wenn der Tisch nicht vor Freitag
geliefert werden kann, hätte ich lieber mein Geld zurück, weil ich zum Monatsende aus dieser Wohnung ausziehe.
Übrigens steht auf der Rechnung noch meine alte Anschrift; die neue lautet Hafenstraße 14, zweiter Stock.

Vielen Dank für Ihre Geduld, Frau Fuchs. Ich habe nachgesehen: Ihr Schreibtisch wird in zwei Kartons
verschickt, und der Paketdienst hält den ersten zurück, bis beide da sind. Der zweite wurde beim Verladen
beschädigt, deshalb haben wir heute Ersatz aus einem anderen Lager losgeschickt. Er müsste morgen im
Verteilzentrum eintreffen, die Zustellung ist für Donnerstagvormittag zwischen neun und zwölf Uhr vorgesehen.
Ihre Anschrift habe ich ebenfalls berichtigt.
"""

CHINESE = """\
你好,我三个星期前订购了一张升降书桌,到现在还没有收到。物流页面显示星期一已经从仓库发出,但之后就再也没有更新过。我给快递公司打了两次电话,
他们每次都说包裹还在等第二个箱子。能不能请你帮我查一下到底是怎么回事?如果星期五之前送不到,我希望可以退款,因为我月底就要从这套公寓搬走了。
另外,你们寄来的发票上写的还是旧地址,我的新地址是海港路十四号二楼。

感谢您的耐心等待。我查了一下:您的书桌分两箱发货,快递公司会等两箱都到齐以后才派送。第二箱在装车的时候损坏了,所以我们今天已经从另一个仓库补发了一箱,
预计明天到达分拨中心,星期四上午九点到十二点之间送货上门。您的地址我也已经更正了。需要我请司机提前半小时给您打电话吗?
"""

JAPANESE = """\
こんにちは。三週間前に昇降式の机を注文しましたが、まだ届いていません。追跡ページには月曜日に倉庫を出たと書いてありますが、それから何も変わっていません。
配送会社に二回電話しましたが、どちらも「二つ目の箱を待っている」と言われました。どうなっているのか調べていただけませんか。金曜日までに届かないようでしたら、
月末にこの部屋を引っ越すので、返金をお願いしたいです。それから、請求書の住所が古いままになっています。新しい住所は港通り十四番地の二階です。

お待たせして申し訳ございません。確認いたしましたところ、お客様の机は二箱に分けて発送され、配送会社は両方がそろうまで一つ目の箱を保管しております。
二つ目の箱は積み込みの際に破損したため、本日、別の倉庫から代わりの品を発送いたしました。明日には集配所に届き、木曜日の午前九時から正午の間にお届けする予定です。
ご住所も訂正いたしました。
"""

ARABIC = """\
مرحبا، طلبت مكتبا قابلا لتعديل الارتفاع قبل ثلاثة أسابيع ولم يصل حتى الآن. تقول صفحة التتبع إنه غادر المستودع
يوم الاثنين، لكن لم يتغير أي شيء منذ ذلك الحين. اتصلت بشركة الشحن مرتين، وفي كل مرة قالوا لي إن الطرد ينتظر
صندوقا ثانيا. هل يمكنك من فضلك معرفة ما يحدث؟ إذا لم يكن التسليم ممكنا قبل يوم الجمعة فأنا أفضل استرداد
أموالي، لأنني سأنتقل من هذه الشقة في نهاية الشهر. وبالمناسبة، لا تزال الفاتورة التي أرسلتموها تحمل العنوان
القديم، وعنواني الجديد هو شارع الميناء رقم أربعة عشر.

شكرا على صبرك. بحثت في الأمر: يتم شحن مكتبك في صندوقين، وتحتفظ شركة الشحن بالصندوق الأول حتى يصل الصندوقان
معا. تعرض الصندوق الثاني للتلف أثناء التحميل، لذلك أرسلنا اليوم بديلا من مستودع آخر. من المتوقع أن يصل غدا إلى
مركز التوزيع، وسيتم التسليم يوم الخميس بين التاسعة صباحا والثانية عشرة ظهرا. لقد صححت عنوانك أيضا.
"""

CODE = '''\
class ShippingDesk:
    """Keeps the parcels of one depot, and says when each is due."""

    def __init__(self, depot: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._depot = depot
        self._clock = clock
        self._parcels: dict[str, Parcel] = {}

    def add(self, parcel: Parcel) -> None:
        if parcel.id in self._parcels:
            raise ValueError(f"parcel {parcel.id!r} is in {self._depot} already")
        self._parcels[parcel.id] = replace(parcel, arrived_at=self._clock())

    async def deliver(self, parcel_id: str, driver: Driver) -> Receipt:
        parcel = self._parcels.pop(parcel_id)
        try:
            with anyio.fail_after(DELIVERY_TIMEOUT_S):
                return await driver.deliver(parcel)
        except TimeoutError:
            self._parcels[parcel_id] = parcel  # it goes out with the next tour
            raise


export async function loadOrders(userId: string, page = 1): Promise<Order[]> {
  const response = await fetch(`/api/users/${userId}/orders?page=${page}`, { credentials: "include" });
  if (!response.ok) {
    throw new HttpError(response.status, await response.text());
  }
  return (await response.json()).items.map((item: RawOrder) => ({ ...item, total: item.cents / 100 }));
}
'''

JSON = """\
{"order_id": "ORD-48213", "customer": {"name": "Dana Fox", "email": "dana@example.com", "plan": "pro"}, "lines": [
{"sku": "DESK-160-OAK", "quantity": 1, "cents": 48900, "boxes": [{"id": "BX-1", "status": "held"}, {"id": "BX-2",
"status": "damaged", "replaced_by": "BX-9"}]}, {"sku": "LAMP-02", "quantity": 2, "cents": 3450, "boxes": []}],
"shipping": {"carrier": "NordPost", "tracking": "NP3390017724DE", "eta": "2025-06-12T09:00:00Z", "attempts": 0},
"address": {"street": "14 Harbour Lane", "floor": 2, "city": "Bremen", "zip": "28195", "geo": [53.0793, 8.8017]}}
{
  "results": [
    {"id": 1, "title": "Return policy", "score": 0.9134, "updated_at": "2024-11-02"},
    {"id": 7, "title": "Delivery in several boxes", "score": 0.8821, "updated_at": "2025-03-19"},
    {"id": 12, "title": "Change of address", "score": 0.7306, "updated_at": "2023-08-30"}
  ],
  "total": 3,
  "next_cursor": null
}
"""

SAMPLES: dict[str, str] = {
    "English": ENGLISH,
    "German": GERMAN,
    "Chinese": CHINESE,
    "Japanese": JAPANESE,
    "Arabic": ARABIC,
    "code": CODE,
    "JSON": JSON,
}
