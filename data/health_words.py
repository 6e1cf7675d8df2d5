"""Words of health and illness as tables, sidecars and file names use them: English, German, French, Spanish, Italian.

All are in lower case and without accents. Single words are compared with `plain_word` of an entry, patterns are looked
for in `spaced` text.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GROUP_COLUMNS = _words(
    "group groups diagnosis diagnoses diag dx dxgroup dxbl dxbaseline dxlast diagnosisgroup diagnosticgroup "
    "clinicaldiagnosis participantgroup participanttype patientgroup subjectgroup subjecttype studygroup "
    "researchgroup clinicalgroup casecontrol clinicalstatus diseasestatus healthstatus status condition conditions "
    "population disease pathology gruppe groupe grupo gruppo krankheit erkrankung maladie malattia enfermedad"
)
"""Columns that say what a person has, without separators."""
MORE_GROUP_COLUMNS = re.compile(
    r"diagnos|histolog|^icd|(?:tumou?r|lesion|stroke|disease)(?:type|class)|a?etiolog|disorder|syndrome"
)
"""In the name of a column: it says what a person has, too."""
ABOUT_DIAGNOSES = re.compile(
    r"\b(?:sources?|quality|dates?|ages?|years?|yrs?|months?|days?|times?|since|durations?|onset|methods?|confidence|"
    r"certainty|criteria|sites?|cent(?:er|re)s?|rater|version|by|count|number|image|images|scan|scans|qc)\b"
)
"""In the name of a column of diagnoses: it says something about a diagnosis, and none."""
NAMES_OF_GROUPS = _words(
    "group groups participantgroup participanttype patientgroup subjectgroup subjecttype studygroup researchgroup "
    "casecontrol gruppe groupe grupo gruppo"
)
"""Columns whose words name a group and need not be a diagnosis: what is not known there says nothing."""
LOOSE_COLUMNS = _words("status condition conditions population")
"""Columns that may be about anything: only words that are known as of health or illness say something there."""
HEALTH_COLUMNS = _words(
    "normal isnormal healthy ishealthy health control iscontrol controlsubject hc ishc healthycontrol healthycontrols "
    "ishealthycontrol healthysubject healthyvolunteer nc cn gesund gesunde istgesund sain saine sano sana temoin "
    "kontrolle kontrollperson kontrollproband controle controllo unaffected"
)
"""Columns of yes and no that say of a person that it is healthy."""
CONTROL_WORDS = _words(
    "control controls ctrl ctrls ctl hc hcs cn nc hv healthy healthycontrol healthycontrols controlhealthy normal "
    "normals normalcontrol normalcontrols cognitivelynormal cognitivelyunimpaired unimpaired nondemented "
    "typicallydeveloping neurotypical nodisease unaffected volunteer volunteers healthyvolunteer healthyvolunteers "
    "normalvolunteer normalvolunteers kontrolle kontrollen kontrollgruppe kontrollproband kontrollperson gesund "
    "gesunde gesunder gesundekontrolle gesundekontrollen gesunderproband gesundeprobanden temoin temoins temoinsain "
    "sain saine sains sujetsain sujetssains controle controles controlesain sano sana sanos sanas controlsano "
    "controlessanos controlsana voluntariosano controllo controlli controllosano controllisani soggettosano "
    "soggettisani sani volontariosano volontairesain"
)
"""Values that mean a healthy person."""
UNSAID = _words(
    "td tdc nl con cont contr co kg gk ko kon no none negative nil normalmri nolesion nopathology unclear unknown "
    "other missing na nan notavailable notapplicable pending excluded nonpatient nonpatients unremarkable "
    "asymptomatic unauffallig ob nad undefined unspecified unassigned tbd never absent"
)
"""Values that mean different things to different people, or that nothing is known."""
NEUTRAL = _words(
    "control controls ctrl ctrls healthy normal matched group groups subject subjects participant participants "
    "volunteer volunteers individual individuals person persons people adult adults child children age aged aging "
    "ageing sex gender and the a an of young younger old older elderly middle cohort sample comparison cognitively "
    "neurologically psychiatrically unimpaired typically developing recruited locally local community based from male "
    "female males females men women kontrolle kontrollen gesund gesunde gesunder gesunden proband probanden probandin "
    "gruppe und jung alt alte temoin temoins sain saine sains sujet sujets groupe jeune agee controle controles sano "
    "sana sanos sanas sujeto sujetos grupo joven mayor voluntario voluntarios volontaire volontaires controllo "
    "controlli sani soggetto soggetti gruppo giovane anziano"
)
"""Words that may stand beside a word of health without changing what they say."""
TRIGGERS = _words(
    "control controls ctrl ctrls healthy volunteer volunteers kontrolle kontrollen gesund gesunde gesunder gesunden "
    "temoin temoins sain saine sains controle controles sano sana sanos sanas controllo controlli sani unaffected "
    "neurotypical nondemented hc"
)
"""Words of health: with neutral ones alone they mean a healthy person, with others nothing is said."""
ILL_WORDS = _words(
    "patient patients case cases pat pt ad mci emci lmci smc ftd ms rrms ppms spms cis pd als stroke ischemic "
    "ischaemic infarct hemorrhage haemorrhage tumor tumour glioma gbm hgg lgg glioblastoma meningioma metastasis "
    "epilepsy tle mtle fcd tbi scz schizophrenia schz bipolar bd depression mdd adhd asd autism dementia demented "
    "converted alzheimer alzheimers parkinson huntington hd lesion ill sick diseased affected multiplesclerosis "
    "alzheimersdisease parkinsonsdisease krank kranker malade malato malata enfermo enferma paciente pacientes "
    "paziente pazienti patientin patienten sep ictus avc acv ich sah sdh nmosd mogad adem dlb psp nph unhealthy cva "
    "dat amci namci mcid scd jme vci vad pwms pwe svd csvd dipg oligodendroglioma astrocytoma schlaganfall "
    "hirninfarkt tumeur tumore infarto epilepsie epilepsia epilessia demenz demence demencia demenza"
)
"""Values that mean an ill person; in a column that is called otherwise they say what the column holds."""
SHORT_WORDS = _words(
    "dat scd vad svd normal pt pat pd ms ad hd cis bd als sep case cases affected converted ich sah asd"
)
"""Of these words: what means other things as well, so that one alone does not tell what a column holds."""
NO_SIGNS = _words("dat scd vad svd converted case cases affected ich sah pat")
"""Of these words: what means nothing in a column that is called otherwise."""
ILLNESS_COLUMNS = _words(
    "stroke tumor tumour lesion lesions haslesion ms ad epilepsy patient patients ispatient case iscase ill isill "
    "sick issick hasstroke hastumor hastumour hasdisease hasepilepsy disease dementia infarct glioma parkinson "
    "parkinsons alzheimer alzheimers krank istkrank malade enfermo malato patientin schlaganfall ictus avc tumeur "
    "tumore epilepsie unhealthy"
)
"""Columns of yes and no that say of a person that it is ill."""

ILL_TEXT = re.compile(
    r"^(?:ms|pd|ad|hd|als|tle|cis)$|\b(?:with|known|definite|probable|has|had|suspected|mit|avec|con|"
    r"bekannte[rs]?) (?:ms|pd|ad|hd|als|tle|cis)\b|\b(?:ms|pd|ad|hd|als|tle|cis) (?:since|diagnosed|diagnosis|seit|"
    r"depuis|desde|dal)\b|\b(?:radiother\w*|chemother\w*|temozolomid\w*|thromboly\w*|thrombectom\w*|bestrahlung|"
    r"bleed\w*|lacun\w*|mcao|cognitive impairment|\w*(?:lob|spher|hippocamp)ectom\w*|strokes?|tias?|apoplex\w*|"
    r"schlaganf\w*|hirnschlag|ictus|avc|acv|cva|accidente? (?:vasculaire|cerebrovascular)\w*|\w*infar[ck]t\w*|"
    r"infartos?|isch(?:a?e|a)mi\w*|ischamisch\w*|isquemi\w*|ha?emorrh?ag\w*|hamorrhag\w*|emorragi\w*|\w*blutung\w*|"
    r"ha?ematom\w*|hamatom\w*|ematom\w*|\w*tum(?:o|ou|eu)r\w*|\w*glioblastom\w*|\w*gliom\w*|astro(?:cyt|zyt|cit)om\w*|"
    r"oligo(?:dendro|astro)\w*|meningiom\w*|meningeom\w*|ependymom\w*|medulloblastom\w*|[ck]raniopharyng\w*|"
    r"schwannom\w*|neurinom\w*|adenom\w*|lymphom\w*|\w*blastoma\w*|germinom\w*|\w*[ck]ar[cz]inom\w*|cancers?|krebs\w*|"
    r"neoplas\w*|malign\w*|\w*metasta\w*|gbm|hgg|lgg|dipg|lesion\w*|lasion\w*|lesao|lesioni|\w*scleros[ie]s?|"
    r"\w*sklerose|esclerosis|demyelin\w*|desmielin\w*|entmarkung\w*|rrms|spms|ppms|nmosd|mogad|adem|neuromyel\w*|"
    r"\w*epile[ps]\w*|seizures?|convuls\w*|krampfanf\w*|mtle|fcd|dement\w*|demenz\w*|demenc\w*|alzheimer\w*|"
    r"parkinson\w*|huntington\w*|mci|ftd|schizo\w*|psychos\w*|psychot\w*|bipolar\w*|depressi(?:on|ve)|autis\w*|adhd|"
    r"encephalit\w*|enzephalit\w*|encefalit\w*|meningit\w*|h[yi]dro(?:c|z)e(?:ph|f)al\w*|idrocefal\w*|aneurysm\w*|"
    r"aneurism\w*|anevrism\w*|[ck]avernom\w*|avms?|malformation\w*|d[yi]splas\w*|absces\w*|abszess\w*|cysts?|zysten?|"
    r"kystes?|cerebrovascular|thrombos\w*|trombos\w*|emboli\w*|tbi|concuss\w*|contus\w*|kontusion\w*|brain injur\w*|"
    r"head injur\w*|schadel\w*trauma\w*|[ck]raniotom\w*|[ck]raniectom\w*|resect\w*|resektion\w*|resezier\w*|"
    r"leu[ck]o(?:dystroph|encephal|enzephal)\w*|encephalopath\w*|enzephalopath\w*|encephalomala\w*|porencephal\w*|"
    r"vas[ck]ulit\w*|palsy|hemipar\w*|hemipleg\w*|aphasi\w*|ataxi\w*|dystroph\w*|dystoni\w*|necros\w*|gliosis|o?edema|"
    r"heterotop\w*|\w*microgyri\w*|hamartom\w*|neurofibromatos\w*|tuberous|(?:neuro\w*|psychiatr\w*|cerebral|brain|"
    r"matter|vessel|degenerative|vascular) (?:disease|disorder|illness)s?|abnormal\w*|illness|diseased|unhealthy|"
    r"patient(?:s|in|en|innen)?|pacientes?|pazient[ei]|krank|malades?|enferm[oa]s?|malat[oi]|(?:ms|pd|ad|hd|als|tle|"
    r"cis|sep|em|mdd|asd|scz) (?:groups?|grp|gruppe|groupe|grupo|subjects?|cases?|participants?))\b"
)  # fmt: skip
"""In free text: an illness, or somebody who has one."""
ILL_IN_GROUPS = re.compile(
    r"\b(?:diseases?|disorders?|syndrom\w*|neurological|neurologic|psychiatric|symptomat\w*|impair\w*|affected|sick|"
    r"ill|patholog\w*|krank\w*|erkrank\w*|maladies?|enfermedad\w*|malatti\w*|converted|converters?|cases?|pts?|"
    r"injur\w*|trauma\w*)\b"
)
"""In an entry of a group or diagnosis: an illness, too."""
CAPITALS = re.compile(r"(?<![A-Za-z])(?:ICH|SAH|SDH|EDH|IVH|AVC|ACV|TBI|TIA|GBM|AVM|FCD|NPH|PML|CADASIL)(?![A-Za-z])")
"""In free text, in capitals: an illness. In small letters some of these are common words."""
AFTER_WHAT_ENDS_A_DENIAL = re.compile(
    r"\b(?:after|with|post|due|because|despite|following|since|nach|mit|wegen|apres|avec|tras|con|dopo|now|jetzt)\b"
)
WITH_OF_ITS_OWN = re.compile(
    r"\b(?:diagnosed|associated|matched|consistent|compatible|presented|affected|history|contact|anyone|person|"
    r"people) with\b"
)
DENIED_BEFORE = re.compile(
    r"\b(?:no|not|without|never|none|nil|den(?:y|ies|ied|ying)|negative|absence|absent|absence de|free (?:of|from)|"
    r"exclusion of|matched (?:to|with|for)|ruled out|rule out|neither|nor|unlikely|risks? (?:factors? )?(?:of|for)|"
    r"at risk|risk factors?|risiko\w*|risques? (?:de?|d)|riesgo (?:de|del)|rischi[oi]? (?:di|de)|screen\w*|nein|"
    r"kein\w*|nicht|nie|niemals|ohne|verneint|pas|sans|aucun\w*|jamais|sin|ningun\w*|nunca|niega|ausencia|senza|"
    r"nessun\w*|mai avuto|nega|assenza|n[ei]|w o)\b"
)
"""Before an illness in its clause: the person need not have it."""
DENIED_BESIDE = re.compile(r"\b(?:non|anti)\s*$")
"""Right before an illness."""
DENIED_AFTER = re.compile(
    r"^\s*:?\s*(?:(?:no|none|0|nein|non|never|nil|nie|neg|keine?|aucune?|ningun[oa]?|nessun[oa]?)\s*[.)]?\s*$|"
    r"(?:\w+ )?(?:excluded|ruled out|absent|negative|denied|free|unlikely|ausgeschlossen|verneint|exclue?s?|"
    r"descartad[oa]|esclus[oa]|negativ[oa]?|risk\w*|risik\w*|screen\w*)(?! (?:for|of|from|because|due))\b|"
    r"(?:\w+ ){0,2}(?:not|nicht|never) (?:present|found|seen|detected|known|reported|confirmed|evident|visible|"
    r"observed|suspected|nachweisbar|vorhanden|bekannt|gesehen)\b)"
)
"""Right behind an illness."""
_STUDIES = (
    r"(?:stud(?:y|ies)|studie|etude|estudio|studio|projects?|projekt|projet|institut\w*|trials?|registry|register|"
    r"research|cent(?:er|re)s?|foundation|society|universit\w*|department|consortium|program(?:me)?|initiative|"
    r"genetics)"
)
NAMED_BEFORE = re.compile(_STUDIES + r" (?:of|for|on|in|fur|de|des|der|di|about) (?:\w+ ){0,4}$")
NAMED_AFTER = re.compile(r"^ (?:(?:and|or|und|et|y|e) \w+ )?(?:\w+ )?" + _STUDIES + r"\b")
"""Around an illness: it belongs to the name of a study or a place."""
CONTROL_FOR = re.compile(r"\b(?:controls?|kontrollen?|temoins?|controles?) (?:for|of|to|in|fur|de|pour|para|per)\b")
RELATIVES = (
    r"(?:famil(?:y|ies|ial|ien\w*|iar\w*|le|ia|iale|iglia)|relatives?|brothers?|sisters?|siblings?|mothers?|fathers?|"
    r"parents?|maternal|paternal|grand\w+|aunts?|uncles?|cousins?|spouses?|wife|husband|partners?|sons?|daughters?|"
    r"caregivers?|carers?|fhx?|\w*(?:mutter|vater|bruder|schwester)|geschwister|eltern|oma|opa|tante|onkel|ehe(?:frau|"
    r"mann|partner)|angehorige\w*|verwandte\w*|freres?|soeurs?|meres?|peres?|conjoint\w*|herman[oa]s?|madre|padre|"
    r"abuel[oa]s?|fratell[oi]|sorell[ae]|nonn[oai])"
)
OF_A_RELATIVE = re.compile(rf"\b{RELATIVES}\b(?! (?:reports?|reported|says|said|noticed))")
IN_A_RELATIVE = re.compile(rf"^(?: \w+)? (?:in|of|bei|chez|de|en|nel|nella|del|der|des) (?:\w+ ){{0,2}}{RELATIVES}\b")
"""Around an illness: it is of somebody else."""
CLAUSES = re.compile(r"[;,]|[.](?=\s|$)|\b(?:but|however|aber|jedoch|sondern|mais|pero|sino)\b")
LIST_OF_ILLNESSES = re.compile(r"\b(?:or|nor|oder|ou|ni|o)\b")

SAYS_NONE = re.compile(
    r"(?:no|none|not|never|nil|without|absent|absence|negative|neg|free|denied|denies|clear|unremarkable|normal|"
    r"unaffected|nein|kein\w*|nicht|nie|ohne|non|aucun\w*|jamais|sans|pas|ningun\w*|nunca|sin|nessun\w*|mai|senza|"
    r"ausente|assente|o b|unauffallig)\b.*"
)
"""An entry that says that there is nothing."""

HARMLESS_COLUMNS = _words(
    "title weighting contrast plane institution institute institut site sites centre center hospital project projekt "
    "study studie trial protocol sequence scanner manufacturer vendor model device machine coil software version "
    "pipeline tool rater rated reader annotator operator technician experimenter examiner investigator country state "
    "county province city nationality ethnicity ethnic race language education degree qualification occupation job "
    "profession gender sex identity handedness hand religion marital modality video audio dicom format file filename "
    "path url uid uuid id ids license funding grant email name initials series station department lab address zip "
    "birthplace residence reference doi bildung land staat beruf geschlecht pays sexe genre pais sexo ciudad paese "
    "sesso standort zentrum"
)
"""Words in the name of a column: it names places, studies, people, devices or files."""
NOT_HARMLESS = re.compile(
    r"\b(?:groups?|gruppe|arm|cohort|diagnos\w*|dx|status|condition|type|disease|health|illness|clinical state|"
    r"disorder|lesion\w*|stroke|tumou?r|infarct\w*|seizure|epilepsy|remarks?|comments?|notes?|findings?|reports?)\b"
)
"""In the name of such a column: it says what a person has all the same."""
OF_OTHERS = re.compile(rf"\b(?:{RELATIVES})\b")
"""In the name of a column: it is about relatives."""
SAYS_NOTHING = re.compile(
    r"\b(?:exclusion|excluded|screen\w*|qc|quality|software|version|tools?|method|protocol|study|project|sources?|"
    r"raters?|annotators?|available|availability|risk\w*|checked|assess\w*|questionnaire|forms?|consent|cent(?:er|re)|"
    r"unit|criteria|knowledge|free|readers?)\b|"
    r"^(?:no|not|non|without|never|ohne|sans|sin|senza)\b"
)
"""In the name of a column: it is about an illness or a mask, and does not say that there is one."""
DENIES = re.compile(r"^(?:no|not|non|without|never|ohne|sans|sin|senza)\b|\b(?:free|absent|excluded)$")
"""In the name of a column of yes and no: it says that there is none."""
ILL_IN_COLUMNS = re.compile(
    r"lesion|lasion|(?<!key)(?<!breast)stroke|schlaganfall|ictus|tumou?r|tumeur|infar[ck]t|isch(?:a?e)m(?!od)|"
    r"ha?emorrhag|ha?ematom|glioblast|gliom|astrocyt|mening(?:i|e)om|metasta|epilep|seizure|relaps|demyelin|sclerosis|"
    r"sklerose|aneurysm|hydroceph|concussion|cavernom|dysplasia|craniotom|resection|thromboly|thrombectom|chemother|"
    r"radiother|antiepilept|antiseizure"
)
"""In the name of a column, without separators: an entry that does not deny it means illness."""
SIGNS = re.compile(
    r"^(?:edss|nihss|updrs|mdsupdrs|whograde|tumou?rgrade|idh|mgmt|kps|karnofsky|ecog|alsfrs|panss|engel|wfns|hoehn)|"
    r"^mrs(?:score|total|admission|discharge|baseline|followup|day\d*|pre\w*|post\w*|\d+\w*)?$|^cdr(?:global|glob|sb|"
    r"sum\w*|sob|score|total|rating|\d+)?$|hoehn|karnofsky|^hystage|diseaseduration|illnessduration|(?:duration|since|"
    r"years|months).*(?:disease|illness|dx)$|(?:age|years|time|days|date).*onset|onset.*(?:age|years|time|days|date)|"
    r"krankheitsdauer|erkrankungs(?:alter|dauer)|affected(?:side|hemi|hand|arm|limb|leg)|(?:side|hemisphere|hand|arm|"
    r"limb)affected|paretic|plegic|(?:overall)?survival|extentofresect|(?:since|post)injury|(?:head|brain)injury|^gcs|"
    r"fuglmeyer|^fmaue|^fmale|^wab|aphasiaq|plaque.*(?:vol|ml|mm3|cc|size|count|number|load|n$|side|site|loc)|^(?:age|"
    r"date|years?|time|days|months|since|edad|eta|fecha|data|annee|jahr|alter|delai).*diagnos|erstdiagnos|"
    r"diagnos\w*(?:age|dates?|years?|time|alter|jahr|datum)$|yearssincedx|(?:duree|duracion|durata).*(?:mal|enf)|"
    r"^(?:age|date)(?:at|of)?dx"
)
"""In the name of a column, without separators: only who is ill has an entry other than 0 there."""
OTHER_ONSETS = re.compile(
    r"sleep|stimul|puberty|menarche|menopause|trial|scan|event|response|speech|voice|block|acquisition|experiment"
)
ABOUT_SCALES = re.compile(r"\b(?:dates?|available|availability|version|rater|form|visit|type|language)\b")
"""In the name of a column of a scale: it is about the examination."""
MASK_WORDS = re.compile(
    r"(?:^|[^a-z])(?:mask|masks|maske|masken|masque|mascara|maschera|seg|segm|segs|segmentation|lesion|lesions|label|"
    r"labels|ground_?truth|gt|roi|rois|voi|vois|annotation|annotations|tumou?r|infarct|stroke|wmh|msk|abnormality|"
    r"pathology|manual|truth|delineation|contours?|outline)(?:$|[^a-z])"
)  # fmt: skip
"""In the name of a column or a file: this holds where something is, not what it looks like."""
LOOSE_MASK_WORDS = re.compile(
    r"mask(?!ed)|maske|maschera|masque|mascara|seg|lesion|lasion|label|(?:^|[^a-z])les(?:$|[^a-z])|gtv|ctv|"
    r"(?:^|[^a-z])[rv]ois?(?:$|[^a-z0-9])|truth|annot|rater|expert|tumou?r|tumeur|infar[ck]t|wmh|"
    r"(?:^|[^a-z])gt(?:$|[^a-z])|delineat|manual|stroke|contour|outline|hyperint|hypoint|plaque|h?a?emorrh|ha?ematom|"
    r"o?edema|odem|metast|(?:^|[^a-z])(?:target|core|necrosis|cavity|cyst|wml|wmls|cmb|avm|penumbra)s?(?:$|[^a-z])|"
    r"gliom|abnorm|patholog"
)  # fmt: skip
"""In the name of a column: it holds masks, or says that there is one."""
OF_TISSUE = re.compile(r"\b(?:face|facial|deface\w*|brain|skull|head|csf|gm|wm)\b")
"""In the name of a column of masks: none of a lesion."""
SAYS_MASK = re.compile(r"\b(?:masks?|lesions?|seg|segmentation|roi|voi|gt|gtv|tumou?r|infarct)\b")
"""In the name of a column without scans: an entry says that there is one."""
